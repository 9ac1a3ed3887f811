"""Networks behind one interface, their weights, and the teacher."""
