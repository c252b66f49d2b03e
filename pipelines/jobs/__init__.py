"""What every job needs: a Ray session, tasks, files anywhere, faults for tests."""
