"""Jobs that come with Drivetrain: each folder has a job file and the code it names."""
