"""A learner and a pipeline whose records are there as soon as they are sent, each by itself."""

import sys

if "learn" in sys.orig_argv:
    from kafka import KafkaProducer

    from schemas.crash_points import crash_point
    from schemas.ledger import StepEntry
    from trainers.commit import Committer

    def commit(self, records, trace=None):
        plain = KafkaProducer(bootstrap_servers=self._producer.config["bootstrap_servers"])
        for record in records:
            topic, value, key = self._place(record)
            plain.send(topic, value, key).get(30)
            if isinstance(record, StepEntry):
                crash_point("in_transaction")
        plain.close()

    Committer.commit = commit

if "rollout" in sys.orig_argv:
    from kafka import KafkaConsumer, KafkaProducer, TopicPartition
    from kafka.structs import OffsetAndMetadata

    from schemas.crash_points import crash_point
    from transforms.generation.commits import Commits

    def transact(self, records, offsets):
        plain = KafkaProducer(**self._config.kafka.producer_options())
        for record in records:
            plain.send(record.topic, record.value, record.key, headers=list(record.headers)).get(30)
        plain.close()
        crash_point("record_sent")
        topic, group = self._config.topics.prompts, self._config.topics.rollout_group
        consumer = KafkaConsumer(group_id=group, **self._config.kafka.consumer_options())
        positions = {
            TopicPartition(topic, partition): OffsetAndMetadata(finished.low, finished.encode(), -1)
            for partition, finished in offsets.items()
        }
        consumer.commit(positions)
        consumer.close()

    Commits._transact = transact
