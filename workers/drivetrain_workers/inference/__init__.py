"""Using a trained model: text, decisions about texts, images and recordings, pictures."""
