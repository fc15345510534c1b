"""The human-labeled data of docs/data.md, built from the publishers' repositories."""
