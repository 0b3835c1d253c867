"""The kill sweep: a crash after each effect of a workflow, and the end is as it would have been."""
