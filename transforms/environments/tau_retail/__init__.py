"""``tau_retail``: customer service of a shop, as tau-bench defines it (Yao et al. 2024, arXiv:2406.12045).

    answer ──calls──► a tool's name and arguments ──tools──► View of the database ──► what the tool says
              └─────► words to the user ──user──► what the user says, or the end ──reward──► 0 or 1

database       what the shop knows, read once a process, and what one conversation has changed of it
tools          the sixteen tools: lookups only read, changes write
calls          how a model asks for a tool
user           the one who wants something
reward         whether the shop is as it should be, and the user was told what they asked
environment    all of it, turn by turn
"""
