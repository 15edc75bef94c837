"""Model files on disk: finding them, reading and checking GGUF headers, predicting what they take."""
