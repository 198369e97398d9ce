"""The parameter table of any module, by the structure that the recorder reads routing by."""
