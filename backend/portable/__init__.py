"""Models without Label Studio: a version written to a folder, and run on a folder of pictures."""
