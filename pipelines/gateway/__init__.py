"""The gateway: people and programs ask the newest weights and judge the answers.

    question ─► chat ─► Desk: exchange record ─► a worker, streamed ─► row in {run}.pending ─► end of the answer
    judgement ─► judging: receipt, limits ─► {run}.feedback ─► 202
    {run}.outcomes, ledger, weights ─► fates ─► what a judgement did

    serve      the process: port, Kafka, workers, uvicorn
    app        routes and what all of them have in common
    guard      address limits and security headers, before any route
    people     who asks
    chat       the forms of OpenAI's route
    desk       one question from its exchange record to its row
    judging    one judgement from its bytes to its acknowledgement
    fates      what became of it, in a bounded memory
    page       the web page
    appender   records to Kafka, acknowledged

It has no state that another replica would miss: what counts lies in Kafka before a client hears of it.
"""
