"""Constants that several rooms share."""

# Mean of the training images in the Caffe convention of the field's checkpoints: blue, green, red in 0..255.
BGR_MEAN = (104.00698793, 116.66876762, 122.67891434)
