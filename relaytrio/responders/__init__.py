"""Ready responders. Import the one you want: none is loaded with the engine."""
