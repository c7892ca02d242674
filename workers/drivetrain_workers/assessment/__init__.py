"""What a trained model is worth: scores, worst slices, a classic method beside it; and what its decisions rest on."""
