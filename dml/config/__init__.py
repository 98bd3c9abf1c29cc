"""params.yaml: plain records (schema), YAML to records (load), records to the objects of the library (build)."""
