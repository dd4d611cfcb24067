{{/* What the templates share: the run's configuration, names, and the parts of a pod. */}}

{{- define "asyncflow.run" -}}
{{- $run := fromToml .Values.config -}}
{{- if hasKey $run "Error" -}}{{- fail (printf "config is not TOML: %s" $run.Error) -}}{{- end -}}
{{- if hasKey $run "include" -}}
{{- fail "config includes other files, which are not in the cluster; give what asyncflow config show --config FILE prints" -}}
{{- end -}}
{{- dig "name" "demo" $run -}}
{{- end }}

{{- define "asyncflow.name" -}}{{- .Release.Name | trunc 40 | trimSuffix "-" -}}{{- end }}

{{/* Labels of one component: call with (list $ "worker"). */}}
{{- define "asyncflow.selector" -}}
app.kubernetes.io/name: asyncflow
app.kubernetes.io/instance: {{ (index . 0).Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end }}

{{- define "asyncflow.labels" -}}
{{ include "asyncflow.selector" . }}
app.kubernetes.io/version: {{ (index . 0).Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ (index . 0).Release.Service }}
helm.sh/chart: {{ printf "%s-%s" (index . 0).Chart.Name (index . 0).Chart.Version }}
{{- end }}

{{/* Call with (list $ "worker-cpu"): a target of the Dockerfile. */}}
{{- define "asyncflow.image" -}}
{{- $ := index . 0 -}}
{{ $.Values.image.registry }}/asyncflow-{{ index . 1 }}:{{ $.Values.image.tag | default $.Chart.AppVersion }}
{{- end }}

{{- define "asyncflow.weightsClaim" -}}{{ .Values.weights.claim | default (printf "%s-weights" (include "asyncflow.name" .)) }}{{- end }}
{{- define "asyncflow.checkpointsClaim" -}}{{ .Values.checkpoints.claim | default (printf "%s-checkpoints" (include "asyncflow.name" .)) }}{{- end }}

{{/* A run's name as Kubernetes takes names. */}}
{{- define "asyncflow.runName" -}}{{ include "asyncflow.run" . | lower | replace "_" "-" }}{{- end }}

{{/* The user of a role at Kafka, and the Secret with what proves it: call with (list $ "worker"). */}}
{{- define "asyncflow.kafkaUser" -}}
{{- $ := index . 0 -}}
{{ printf "%s-%s" ($.Values.kafka.userPrefix | default (include "asyncflow.runName" $)) (index . 1) }}
{{- end }}

{{/* The first rank's address: where the others and engines meet it. */}}
{{- define "asyncflow.learnerHost" -}}
{{- $name := printf "%s-learner" (include "asyncflow.name" .) -}}
{{ eq .Values.learner.kind "pytorchjob" | ternary (printf "%s-master-0" $name) (printf "%s-0.%s" $name $name) }}
{{- end }}

{{/* What every pod's metadata has: call with (list $ "worker"). A changed configuration starts the pods again. */}}
{{- define "asyncflow.podMetadata" -}}
{{- $ := index . 0 -}}
labels:
  {{- include "asyncflow.labels" . | nindent 2 }}
  {{- with $.Values.podLabels }}{{ toYaml . | nindent 2 }}{{ end }}
annotations:
  checksum/config: {{ include (print $.Template.BasePath "/configmap.yaml") $ | sha256sum }}
  {{- with $.Values.podAnnotations }}{{ toYaml . | nindent 2 }}{{ end }}
{{- end }}

{{/* What every pod's spec begins with: call with (list $ $component), the component's values. */}}
{{- define "asyncflow.podSpec" -}}
{{- $ := index . 0 -}}{{- $of := index . 1 -}}
automountServiceAccountToken: false
enableServiceLinks: false
securityContext:
  runAsNonRoot: true
  runAsUser: 10001
  runAsGroup: 10001
  fsGroup: 10001
  fsGroupChangePolicy: OnRootMismatch
{{- with $.Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- with $of.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $of.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $of.affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* Call with (dict "type" "RuntimeDefault"). */}}
{{- define "asyncflow.containerSecurity" -}}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: {drop: [ALL]}
  seccompProfile: {{- toYaml . | nindent 4 }}
{{- end }}

{{/* Call with (list $ "worker" $env): the environment of a role. */}}
{{- define "asyncflow.env" -}}
{{- $ := index . 0 -}}
{{- if ne $.Values.kafka.auth "none" }}
- name: KAFKA_USER
  value: {{ include "asyncflow.kafkaUser" . }}
{{- end }}
{{- with index . 2 }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* Call with (list $ "worker" (list "model" "weights")): where a role's files are mounted. */}}
{{- define "asyncflow.mounts" -}}
{{- $ := index . 0 -}}{{- $has := index . 2 -}}
- {name: config, mountPath: /etc/asyncflow, readOnly: true}
- {name: tmp, mountPath: /tmp}
- {name: home, mountPath: /home/asyncflow}
{{- if ne $.Values.kafka.auth "none" }}
- {name: kafka-user, mountPath: /etc/asyncflow-kafka/user, readOnly: true}
- {name: kafka-ca, mountPath: /etc/asyncflow-kafka/ca, readOnly: true}
{{- end }}
{{- if has "model" $has }}
- {name: model, mountPath: /models, readOnly: true}
{{- end }}
{{- if and (has "weights" $has) (not $.Values.weights.bucket) }}
- {name: weights, mountPath: /weights{{ if not (has "writes-weights" $has) }}, readOnly: true{{ end }}}
{{- end }}
{{- if has "checkpoints" $has }}
- {name: checkpoints, mountPath: /checkpoints}
{{- end }}
{{- if has "shm" $has }}
- {name: shm, mountPath: /dev/shm}
{{- end }}
{{- if and (has "receipts" $has) $.Values.gateway.receiptsSecret }}
- {name: receipts, mountPath: /etc/asyncflow-receipts, readOnly: true}
{{- end }}
{{- if and (has "worker-key" $has) $.Values.worker.keySecret }}
- {name: worker-key, mountPath: /etc/asyncflow-worker, readOnly: true}
{{- end }}
{{- end }}

{{/* Call with (list $ "worker" (list "model" "weights") $component): the volumes of those mounts. */}}
{{- define "asyncflow.volumes" -}}
{{- $ := index . 0 -}}{{- $has := index . 2 -}}{{- $of := index . 3 -}}
- name: config
  configMap: {name: {{ include "asyncflow.name" $ }}-config}
- name: tmp
  emptyDir: {{ with $of.scratch }}{sizeLimit: {{ . }}}{{ else }}{}{{ end }}
- name: home
  emptyDir: {}
{{- if ne $.Values.kafka.auth "none" }}
- name: kafka-user
  secret: {secretName: {{ include "asyncflow.kafkaUser" . }}, defaultMode: 0440}
- name: kafka-ca
  secret: {secretName: {{ $.Values.kafka.caSecret }}, items: [{key: ca.crt, path: ca.crt}]}
{{- end }}
{{- if has "model" $has }}
- name: model
  persistentVolumeClaim: {claimName: {{ $.Values.model.claim }}, readOnly: true}
{{- end }}
{{- if and (has "weights" $has) (not $.Values.weights.bucket) }}
- name: weights
  persistentVolumeClaim: {claimName: {{ include "asyncflow.weightsClaim" $ }}}
{{- end }}
{{- if has "checkpoints" $has }}
- name: checkpoints
  persistentVolumeClaim: {claimName: {{ include "asyncflow.checkpointsClaim" $ }}}
{{- end }}
{{- if has "shm" $has }}
- name: shm
  emptyDir: {medium: Memory, sizeLimit: {{ $of.sharedMemory }}}
{{- end }}
{{- if and (has "receipts" $has) $.Values.gateway.receiptsSecret }}
- name: receipts
  secret: {secretName: {{ $.Values.gateway.receiptsSecret }}, defaultMode: 0440, items: [{key: receipts.key, path: receipts.key}]}
{{- end }}
{{- if and (has "worker-key" $has) $.Values.worker.keySecret }}
- name: worker-key
  secret: {secretName: {{ $.Values.worker.keySecret }}, defaultMode: 0440, items: [{key: key, path: key}]}
{{- end }}
{{- end }}

{{/* Resources with GPUs: call with $component. */}}
{{- define "asyncflow.resources" -}}
{{- $limits := deepCopy (.resources.limits | default dict) -}}
{{- if .gpus }}{{- $_ := set $limits "nvidia.com/gpu" .gpus -}}{{- end -}}
requests: {{- toYaml (.resources.requests | default dict) | nindent 2 }}
limits: {{- toYaml $limits | nindent 2 }}
{{- end }}

{{/* A process without a port that others reach: looked at from inside. Call with its port. */}}
{{- define "asyncflow.metricsProbes" -}}
startupProbe:
  exec: {command: [healthy, "http://127.0.0.1:{{ . }}/metrics"]}
  periodSeconds: 10
  timeoutSeconds: 10
  failureThreshold: 60
livenessProbe:
  exec: {command: [healthy, "http://127.0.0.1:{{ . }}/metrics"]}
  periodSeconds: 30
  timeoutSeconds: 10
  failureThreshold: 4
{{- end }}

{{/* Parts of network policies. */}}
{{- define "asyncflow.peer" }}
- podSelector:
    matchLabels: {{- include "asyncflow.selector" . | nindent 6 }}
{{- end }}
{{- define "asyncflow.policy" }}
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  name: {{ include "asyncflow.name" (index . 0) }}-{{ index . 1 }}
  labels: {{- include "asyncflow.labels" . | nindent 4 }}
spec:
  podSelector:
    matchLabels: {{- include "asyncflow.selector" . | nindent 6 }}
  policyTypes: [Ingress, Egress]
{{- end }}
{{- define "asyncflow.commonEgress" }}
- ports: # names
    - {protocol: UDP, port: 53}
    - {protocol: TCP, port: 53}
- ports: # Kafka
    - {protocol: TCP, port: {{ .Values.kafka.port }}}
{{- end }}
{{- define "asyncflow.storeEgress" }}
{{- if .Values.weights.bucket }}
- ports: # the bucket
    - {protocol: TCP, port: {{ .Values.networkPolicies.storePort }}}
{{- end }}
{{- end }}

{{/* The learner's container: call with (list $ $has $alone $job). */}}
{{- define "asyncflow.learnerContainer" }}
{{- $ := index . 0 }}{{ $of := $.Values.learner }}{{ $has := index . 1 }}{{ $alone := index . 2 }}{{ $job := index . 3 }}
- name: {{ $job | ternary "pytorch" "learner" }}
  image: {{ include "asyncflow.image" (list $ "learner") }}
  imagePullPolicy: {{ $.Values.image.pullPolicy }}
  {{- if $alone }}
  command: [asyncflow, learn, --config, /etc/asyncflow/asyncflow.toml]
  {{- else if $job }}
  command: [torchrun, /opt/asyncflow/bin/asyncflow, learn, --config, /etc/asyncflow/asyncflow.toml] # the operator sets PET_…
  {{- else }}
  command:
    - torchrun
    - --nnodes={{ $of.nodes }}
    - --nproc-per-node={{ $of.processes }}
    - --node-rank=$(NODE_RANK)
    - --master-addr={{ include "asyncflow.learnerHost" $ }}
    - --master-port={{ $of.rendezvousPort }}
    - /opt/asyncflow/bin/asyncflow
    - learn
    - --config
    - /etc/asyncflow/asyncflow.toml
  {{- end }}
  env:
    {{- if not $job }}
    - name: NODE_RANK
      valueFrom: {fieldRef: {fieldPath: "metadata.labels['apps.kubernetes.io/pod-index']"}}
    {{- end }}
    {{- include "asyncflow.env" (list $ "learner" $of.env) | trim | nindent 4 }}
  ports:
    - {name: metrics, containerPort: {{ $of.metricsPort }}}
    - {name: rendezvous, containerPort: {{ $of.rendezvousPort }}}
    - {name: weights, containerPort: {{ $of.weightsPort }}}
  {{- if $alone }}
  {{- include "asyncflow.metricsProbes" $of.metricsPort | nindent 2 }}
  {{- end }}
  resources: {{- include "asyncflow.resources" $of | nindent 4 }}
  {{- include "asyncflow.containerSecurity" (dict "type" "RuntimeDefault") | nindent 2 }}
  volumeMounts: {{- include "asyncflow.mounts" (list $ "learner" $has) | nindent 4 }}
{{- end }}

{{/* Parts of the pods of Flink. */}}
{{- define "asyncflow.flinkPod" -}}
apiVersion: v1
kind: Pod
metadata:
  labels: {{- include "asyncflow.labels" (list . "flink") | nindent 4 }}
{{- end }}
{{- define "asyncflow.flinkContainer" -}}
- name: flink-main-container
  securityContext:
    allowPrivilegeEscalation: false
    capabilities: {drop: [ALL]}
    seccompProfile: {type: RuntimeDefault}
  volumeMounts:
    - {name: flink-state, mountPath: /flink-state}
{{- end }}
{{- define "asyncflow.flinkVolume" -}}
- name: flink-state
  persistentVolumeClaim: {claimName: {{ .Values.pipelines.flink.stateClaim }}}
{{- end }}
