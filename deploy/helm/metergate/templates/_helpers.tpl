{{- define "metergate.name" -}}
{{- if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- /* Of a dict of `root` and `own`: what a component has instead of the release's. */ -}}
{{- define "metergate.image" -}}
{{- $own := .own | default dict -}}
{{- $image := .root.Values.image -}}
{{- if or $own.digest $own.tag -}}
{{- $image = merge (dict "digest" $own.digest "tag" $own.tag) $image -}}
{{- if not $own.digest -}}{{- $_ := set $image "digest" "" -}}{{- end -}}
{{- end -}}
{{- if $image.digest -}}
{{ $image.repository }}@{{ $image.digest }}
{{- else -}}
{{ $image.repository }}:{{ $image.tag | default .root.Chart.AppVersion }}
{{- end -}}
{{- end -}}

{{- define "metergate.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{ .Values.serviceAccount.name | default (include "metergate.name" .) }}
{{- else -}}
{{ .Values.serviceAccount.name | default "default" }}
{{- end -}}
{{- end -}}

{{- /* Both take a dict of `root` and `role`. */ -}}
{{- define "metergate.selector" -}}
app.kubernetes.io/name: {{ .root.Chart.Name }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .role }}
{{- end -}}

{{- define "metergate.labels" -}}
{{ include "metergate.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version }}
{{- end -}}

{{- define "metergate.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "metergate.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{- /* A map as the `env` of a container. */ -}}
{{- define "metergate.env" -}}
{{- range $name, $text := . }}
- name: {{ $name }}
  value: {{ $text | quote }}
{{- end -}}
{{- end -}}

{{- define "metergate.kafka" -}}
METERGATE_KAFKA_SERVERS: {{ .Values.kafka.servers | quote }}
METERGATE_KAFKA_TOPIC: {{ .Values.kafka.topic | quote }}
METERGATE_KAFKA_PARTITIONS: {{ .Values.kafka.partitions | quote }}
METERGATE_KAFKA_PROTOCOL: {{ .Values.kafka.protocol | quote }}
{{- if .Values.kafka.username }}
METERGATE_KAFKA_MECHANISM: {{ .Values.kafka.mechanism | quote }}
METERGATE_KAFKA_USERNAME: {{ .Values.kafka.username | quote }}
{{- end }}
{{- end -}}

{{- /* How many enforcers there may be: each has this part of a feature's emergency amount. */ -}}
{{- define "metergate.mostEnforcers" -}}
{{- if .Values.enforcer.autoscaling.enabled -}}
{{ .Values.enforcer.autoscaling.maxReplicas }}
{{- else -}}
{{ .Values.enforcer.replicas }}
{{- end -}}
{{- end -}}

{{- /* The volume of files that the secrets in `files` (file → key) become, of a dict of `root` and `files`. */ -}}
{{- define "metergate.secrets" -}}
- name: secrets
  secret:
    secretName: {{ required "secrets.name: the name of a Secret of yours is needed" .root.Values.secrets.name }}
    defaultMode: 0440
    items:
      {{- range $file, $key := .files }}
      {{- if $key }}
      - key: {{ $key }}
        path: {{ $file }}
      {{- end }}
      {{- end }}
{{- end -}}

{{- /* What every pod has alike, of a dict of `root`, `role`, `values` and `files`. */ -}}
{{- define "metergate.pod" -}}
metadata:
  labels:
    {{- include "metergate.labels" . | nindent 4 }}
  {{- with .values.podAnnotations }}
  annotations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
spec:
  serviceAccountName: {{ include "metergate.serviceAccount" .root }}
  automountServiceAccountToken: false
  enableServiceLinks: false
  securityContext:
    {{- include "metergate.podSecurity" . | nindent 4 }}
  terminationGracePeriodSeconds: {{ .values.terminationGracePeriodSeconds }}
  {{- with .root.Values.image.pullSecrets }}
  imagePullSecrets:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .values.priorityClassName }}
  priorityClassName: {{ . }}
  {{- end }}
  {{- with .values.nodeSelector }}
  nodeSelector:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .values.tolerations }}
  tolerations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .values.affinity }}
  affinity:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  topologySpreadConstraints:
    {{- range $key := list "topology.kubernetes.io/zone" "kubernetes.io/hostname" }}
    - maxSkew: 1
      topologyKey: {{ $key }}
      whenUnsatisfiable: ScheduleAnyway
      labelSelector:
        matchLabels:
          {{- include "metergate.selector" $ | nindent 10 }}
    {{- end }}
  containers:
    - name: {{ .role }}
      image: {{ include "metergate.image" (dict "root" .root "own" .values.image) | quote }}
      imagePullPolicy: {{ .root.Values.image.pullPolicy }}
      securityContext:
        {{- include "metergate.containerSecurity" . | nindent 8 }}
      resources:
        {{- toYaml .values.resources | nindent 8 }}
      {{- if .values.preStopSeconds }}
      lifecycle:
        preStop:
          sleep:
            seconds: {{ .values.preStopSeconds }}
      {{- end }}
      {{- include (printf "metergate.%s.container" .role) .root | nindent 6 }}
      volumeMounts:
        - name: tmp
          mountPath: /tmp
        - name: secrets
          mountPath: /run/secrets/metergate
          readOnly: true
        {{- with .values.extraVolumeMounts }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
  volumes:
    - name: tmp
      emptyDir:
        medium: Memory
        sizeLimit: 64Mi
    {{- include "metergate.secrets" . | nindent 4 }}
    {{- with .values.extraVolumes }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
{{- end -}}

{{- /* Of the meter's roles: its HTTP port tells of life and readiness. */ -}}
{{- define "metergate.meter.probes" -}}
startupProbe:
  httpGet: {path: /healthz, port: metrics}
  periodSeconds: 5
  # A process that waits for its stores is not to be ended for it.
  failureThreshold: 360
livenessProbe:
  httpGet: {path: /healthz, port: metrics}
  periodSeconds: 10
  timeoutSeconds: 6
  failureThreshold: 3
readinessProbe:
  httpGet: {path: /readyz, port: metrics}
  periodSeconds: 5
  timeoutSeconds: 3
  failureThreshold: 2
{{- end -}}
