"""What the demo, the tests and the measuring scripts share; standard library only."""
