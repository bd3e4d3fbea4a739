"""Everything that imports TVM: schedules, compilation and timing."""
