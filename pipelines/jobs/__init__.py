"""What every job needs: its folder, a Ray session, tasks, faults for tests."""
