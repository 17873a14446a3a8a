"""The embedded data set: scenes of one or two objects, drawn, captioned and read back."""
