"""What cwbass costs and scores, measured."""
