"""What an edit did, before and after."""
