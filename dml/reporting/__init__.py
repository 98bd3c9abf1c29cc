"""From the records of runs to what people browse: tables, verdicts, figures and pages."""
