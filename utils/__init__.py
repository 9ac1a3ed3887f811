"""What all parts of the project use: configuration, errors, files, logging, metrics, processes."""
