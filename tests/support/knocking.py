"""Who gets in: single requests to a broker, and whether its authorizer let them pass.

    with Knocker(kafka) as knocker:
        knocker.topics("Write", ["run.prompts", "run.ledger"])    # {"run.prompts": True, "run.ledger": False}
        knocker.group("Read", "run.rollout")                      # False

A request that is let pass may fail for another reason: most here are made so that it does, and change nothing.
"""

from kafka.protocol.admin import (
    CreateAclsRequest,
    CreateTopicsRequest,
    DeleteRecordsRequest,
    DescribeConfigsRequest,
    IncrementalAlterConfigsRequest,
)
from kafka.protocol.consumer import FetchRequest, HeartbeatRequest, OffsetFetchRequest
from kafka.protocol.metadata import FindCoordinatorRequest, MetadataRequest
from kafka.protocol.producer import EndTxnRequest, ProduceRequest

from pipelines.local.topics import connect

_DENIED = {29, 30, 31, 53}
"""Kafka's codes for topics, groups, the cluster and transactional ids."""
_TOPIC, _TRANSACTION = 2, 1


class Knocker:
    """One principal."""

    def __init__(self, kafka):
        self._admin = connect(kafka, 60)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._admin.close()

    def _ask(self, request):
        manager = self._admin._manager
        return manager.run(manager.send, request)

    def sees(self):
        """The topics that the broker tells of."""
        return set(self._admin.list_topics())

    def topics(self, operation, names):
        """Whether an operation is allowed, by topic."""
        codes = getattr(self, f"_{operation.lower()}")(names)
        assert set(codes) == set(names)
        return {name: code not in _DENIED for name, code in codes.items()}

    def group(self, operation, name):
        if operation == "Read":
            answer = self._ask(HeartbeatRequest(group_id=name, generation_id=1, member_id="nobody", version=3))
        else:
            answer = self._ask(OffsetFetchRequest(group_id=name, topics=None, version=7))
        return answer.error_code not in _DENIED

    def transactional_id(self, operation, name):
        if operation == "Write":
            wrong = {"producer_id": 1 << 40, "producer_epoch": 0, "committed": False}
            answer = self._ask(EndTxnRequest(transactional_id=name, version=3, **wrong))
        else:
            answer = self._ask(FindCoordinatorRequest(key=name, key_type=_TRANSACTION, version=3))
        return answer.error_code not in _DENIED

    def administers(self):
        """Whether it may write ACLs, so anything."""
        everything = {"resource_type": _TOPIC, "resource_name": "x", "principal": "User:x", "host": "*",
                      "operation": 3, "permission_type": 3}  # fmt: skip
        answer = self._ask(CreateAclsRequest(creations=[CreateAclsRequest.AclCreation(**everything)], version=1))
        return answer.results[0].error_code not in _DENIED

    def _read(self, names):
        topic = FetchRequest.FetchTopic
        partition = topic.FetchPartition(partition=0, fetch_offset=0, partition_max_bytes=1)
        asked = [topic(topic=name, partitions=[partition]) for name in names]
        answer = self._ask(FetchRequest(max_wait_ms=0, min_bytes=0, topics=asked, version=11))
        return {each.topic: each.partitions[0].error_code for each in answer.responses}

    def _write(self, names):
        """Batches without a record, which the broker refuses once it has let them in."""
        topic = ProduceRequest.TopicProduceData
        data = [topic.PartitionProduceData(index=0, records=b"")]
        asked = [topic(name=name, partition_data=data) for name in names]
        answer = self._ask(ProduceRequest(acks=-1, timeout_ms=10_000, topic_data=asked, version=8))
        return {each.name: each.partition_responses[0].error_code for each in answer.responses}

    def _create(self, names):
        asked = [CreateTopicsRequest.CreatableTopic(name=name, num_partitions=1, replication_factor=1)
                 for name in names]  # fmt: skip
        answer = self._ask(CreateTopicsRequest(topics=asked, validate_only=True, version=5))
        return {each.name: each.error_code for each in answer.topics}

    def _describe(self, names):
        asked = [MetadataRequest.MetadataRequestTopic(name=name) for name in names]
        answer = self._ask(MetadataRequest(topics=asked, allow_auto_topic_creation=False, version=7))
        return {each.name: each.error_code for each in answer.topics}

    def _describeconfigs(self, names):
        resource = DescribeConfigsRequest.DescribeConfigsResource
        asked = [resource(resource_type=_TOPIC, resource_name=name, configuration_keys=None) for name in names]
        answer = self._ask(DescribeConfigsRequest(resources=asked, version=1))
        return {each.resource_name: each.error_code for each in answer.results}

    def _delete(self, names):
        topic = DeleteRecordsRequest.DeleteRecordsTopic
        first = [topic.DeleteRecordsPartition(partition_index=0, offset=0)]
        asked = [topic(name=name, partitions=first) for name in names]
        answer = self._ask(DeleteRecordsRequest(topics=asked, timeout_ms=10_000, version=1))
        return {each.name: each.partitions[0].error_code for each in answer.topics}

    def _alterconfigs(self, names):
        resource = IncrementalAlterConfigsRequest.AlterConfigsResource
        change = [resource.AlterableConfig(name="retention.ms", config_operation=0, value="1")]
        asked = [resource(resource_type=_TOPIC, resource_name=name, configs=change) for name in names]
        answer = self._ask(IncrementalAlterConfigsRequest(resources=asked, validate_only=True, version=0))
        return {each.resource_name: each.error_code for each in answer.responses}
