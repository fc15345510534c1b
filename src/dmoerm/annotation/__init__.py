"""The annotation page: people compare two responses, overall and on each capability.

store.py       groups, pairs and answers in one SQLite file
session.py     which question comes next for an annotator, and what an answer changes
agreement.py   agreement and κ between annotators
export.py      answers → native rows
server.py      the HTTP application, and its process on this machine
page/          the page
"""
