"""The protocols that clients speak: every module of this package with a `router` is one.

A protocol turns a request's body into queries for `Service.score`, or into prompts and responses for
`Service.score_texts`, and the scores into its answer.
"""
