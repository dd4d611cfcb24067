"""Data sets as prompts: each with a reward, and a split that is never trained.

    directory of the user ──Task.rows──► prompts, in the order of the files ──draw──► some of them, shuffled by a seed
                                                                                └──► a run's topic, or a file

task           what a task is
translation    Multi30k: sentences from English to German or French, by chrF
gsm8k          GSM8K: word problems of several steps, by the last number
mathematics    MATH, AIME 2024 and AMC 2023: problems of competitions, by math-verify
arith          ASDiv, MAWPS and SVAMP: short word problems, by the last number
countdown      numbers that make a target, by the expression
ifeval         IFEval: texts that follow instructions, by the share that is followed
tau_retail     tau-bench: customers of a shop, whom an agent helps with tools, by what the database is left as
support        Bitext: messages of customers and what they are about, by label
glue           the tasks of GLUE: classes as words, by label; how alike two sentences are, by closeness
superglue      the tasks of SuperGLUE, by label and span
family         several tasks as one, a prompt of each in turn
benchmark      what these share; tables reads their files, division holds out rows where there is one file
registry       tasks by name, with what they are told
lines          rows of files of JSON
draw           which prompts, in which order, and what people's word counts in their reward
"""
