"""The official rules: how an answer is read from a response, and when it is right. Nothing of it evaluates text."""
