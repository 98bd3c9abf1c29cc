"""Records to the objects of the library, one file per subject, so that a stage depends only on what it builds."""
