"""The tables of documents that follow from declarations: rules in docs/rules.md, arguments in templates/README.md."""
