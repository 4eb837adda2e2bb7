"""What is promised of files, Loader and training, tried until it would break."""
