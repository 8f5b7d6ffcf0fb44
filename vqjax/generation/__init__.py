"""Images from the trained models of a run: drawing, decoding, editing."""
