"""What a model may say: schemas and grammars, checked, compiled and followed. The only room that imports llguidance."""
