{{/*
The frame of every Deployment and of the migrations' Job. What differs comes from definitions of the part's own:
"polaris.<part>.env", "polaris.<part>.mounts", "polaris.<part>.volumes" (lists, may be empty).
*/}}
{{- define "polaris.deployment" -}}
apiVersion: apps/v1
kind: Deployment
metadata:
  {{- include "polaris.metadata" . | nindent 2 }}
spec:
  {{- if not (dig "autoscaling" "enabled" false .values) }}
  replicas: {{ .values.replicas }}
  {{- end }}
  {{- if has .part (list "operator" "service" "embedder") }}
  strategy: {type: RollingUpdate, rollingUpdate: {maxUnavailable: 0, maxSurge: 1}}
  {{- end }}
  selector:
    matchLabels:
      {{- include "polaris.selector" . | nindent 6 }}
  template:
    metadata:
      {{- include "polaris.podMetadata" . | nindent 6 }}
    spec:
      serviceAccountName: {{ include "polaris.serviceAccountName" . }}
      # Operator and service ask the API server; nobody else gets a token.
      automountServiceAccountToken: {{ has .part (list "operator" "service") }}
      terminationGracePeriodSeconds: {{ .values.terminationGracePeriodSeconds }}
      {{- include "polaris.podSpec" . | nindent 6 }}
      {{- if .root.Values.topologySpreadConstraints }}
      {{- include "polaris.spread" . | nindent 6 }}
      {{- end }}
      containers:
      - {{ include "polaris.container" . | indent 8 | trim }}
        ports:
        - {name: {{ include "polaris.scheme" . }}, containerPort: {{ include "polaris.port" .part }}}
        {{- include "polaris.probes" . | nindent 8 }}
        {{- if has .part (list "service" "embedder") }}
        # Endpoints are told before the process is, so that no new request arrives while it ends. A single embedder is
        # asked until the pod that replaces it is ready: Services lead to pods that end where there is no other.
        lifecycle: {preStop: {sleep: {seconds: {{ ternary 15 5 (eq .part "embedder") }}}}}
        {{- end }}
      volumes:
      {{- include "polaris.volumes" . | nindent 6 }}
{{- end -}}

{{- define "polaris.podMetadata" -}}
labels:
  {{- include "polaris.labels" . | nindent 2 }}
  {{- with .values.podLabels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- if or .values.podAnnotations .root.Values.settings }}
annotations:
  {{- with .root.Values.settings }}
  checksum/settings: {{ toJson . | sha256sum }}
  {{- end }}
  {{- with .values.podAnnotations }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end }}
{{- end -}}

{{/* Restricted Pod Security, and where the pod may run. */}}
{{- define "polaris.podSpec" -}}
securityContext:
  runAsNonRoot: true
  runAsUser: 10001
  runAsGroup: 10001
  fsGroup: 10001
  seccompProfile: {type: RuntimeDefault}
{{- with .root.Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- end -}}

{{- define "polaris.spread" -}}
topologySpreadConstraints:
{{- range .root.Values.topologySpreadConstraints }}
- {{ toYaml . | indent 2 | trim }}
  {{- if not .labelSelector }}
  labelSelector:
    matchLabels:
      {{- include "polaris.selector" $ | nindent 6 }}
  {{- if not .matchLabelKeys }}
  # Pods of an older revision don't count, or a rolling update would end lopsided.
  matchLabelKeys: [pod-template-hash]
  {{- end }}
  {{- end }}
{{- end }}
{{- end -}}

{{/* The container: image, variables, mounts. */}}
{{- define "polaris.container" -}}
name: {{ .part }}
image: {{ include "polaris.image" . | quote }}
imagePullPolicy: {{ .image.pullPolicy }}
args: [{{ get (dict "service" "serve") .part | default .part }}]
env:
- {name: POLARIS_LOG_LEVEL, value: {{ .root.Values.logLevel | quote }}}
{{- if ne .part "migrate" }}
{{- if .root.Values.settings }}
- {name: POLARIS_SETTINGS_FILE, value: /run/polaris/settings/settings.yaml}
{{- end }}
{{- with .root.Values.tracing.endpoint }}
- {name: OTEL_EXPORTER_OTLP_ENDPOINT, value: {{ . | quote }}}
- {name: OTEL_TRACES_SAMPLER_ARG, value: {{ $.root.Values.tracing.samplerRatio | quote }}}
{{- end }}
{{- end }}
{{- if eq (include "polaris.scheme" .) "https" }}
- {name: POLARIS_TLS_CERT_FILE, value: /run/polaris/tls/tls.crt}
- {name: POLARIS_TLS_KEY_FILE, value: /run/polaris/tls/tls.key}
{{- end }}
{{- include (printf "polaris.%s.env" .part) . }}
{{- with .values.env }}
{{ toYaml . }}
{{- end }}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: {drop: [ALL]}
resources:
  {{- toYaml .resources | nindent 2 }}
volumeMounts:
- {name: tmp, mountPath: /tmp}
{{- if and .root.Values.settings (ne .part "migrate") }}
- {name: settings, mountPath: /run/polaris/settings, readOnly: true}
{{- end }}
{{- if eq (include "polaris.scheme" .) "https" }}
- {name: tls, mountPath: /run/polaris/tls, readOnly: true}
{{- end }}
{{- include (printf "polaris.%s.mounts" .part) . }}
{{- with .values.extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "polaris.volumes" -}}
- {name: tmp, emptyDir: {}}
{{- if and .root.Values.settings (ne .part "migrate") }}
- name: settings
  configMap: {name: {{ include "polaris.fullname" .root }}-settings}
{{- end }}
{{- if eq (include "polaris.scheme" .) "https" }}
- name: tls
  secret: {secretName: {{ .values.tls.secretName | quote }}, defaultMode: 0440}
{{- end }}
{{- include (printf "polaris.%s.volumes" .part) . }}
{{- with .values.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "polaris.probes" -}}
{{- $probes := .root.Values.probes -}}
{{- $scheme := include "polaris.scheme" . -}}
{{- $at := printf "port: %s%s" $scheme (ternary ", scheme: HTTPS" "" (eq $scheme "https")) -}}
startupProbe:
  httpGet: {path: /livez, {{ $at }}}
  periodSeconds: {{ $probes.startup.periodSeconds }}
  failureThreshold: {{ $probes.startup.failureThreshold }}
livenessProbe:
  httpGet: {path: /livez, {{ $at }}}
  periodSeconds: {{ $probes.liveness.periodSeconds }}
  timeoutSeconds: {{ $probes.liveness.timeoutSeconds }}
  failureThreshold: {{ $probes.liveness.failureThreshold }}
readinessProbe:
  httpGet: {path: /readyz, {{ $at }}}
  periodSeconds: {{ $probes.readiness.periodSeconds }}
  timeoutSeconds: {{ $probes.readiness.timeoutSeconds }}
  failureThreshold: {{ $probes.readiness.failureThreshold }}
{{- end -}}

{{/* Variables, mounts and volumes that service and worker share: the login's Secret, the embedder. */}}
{{- define "polaris.database.env" }}
- {name: POLARIS_DATABASE_SECRET, value: /run/polaris/database}
- {name: POLARIS_EMBEDDER, value: {{ include "polaris.embedderURL" .root | quote }}}
{{- if .root.Values.embedder.keySecret }}
- {name: POLARIS_EMBEDDER_KEY_FILE, value: /run/polaris/embedder/key}
{{- end }}
{{- if include "polaris.embedderCA" .root }}
- {name: POLARIS_EMBEDDER_CA_FILE, value: /run/polaris/embedder-ca/ca.crt}
{{- end }}
{{- end -}}

{{- define "polaris.database.mounts" }}
# No subPath: a mounted Secret follows its changes only as a whole folder.
- {name: database, mountPath: /run/polaris/database, readOnly: true}
{{- if .root.Values.embedder.keySecret }}
- {name: embedder-key, mountPath: /run/polaris/embedder, readOnly: true}
{{- end }}
{{- if include "polaris.embedderCA" .root }}
- {name: embedder-ca, mountPath: /run/polaris/embedder-ca, readOnly: true}
{{- end }}
{{- end -}}

{{- define "polaris.database.volumes" }}
# Optional: pods start before the operator has made the login, and say so.
- name: database
  secret: {secretName: {{ .values.databaseSecret | quote }}, optional: true, defaultMode: 0440}
{{- with .root.Values.embedder.keySecret }}
- name: embedder-key
  secret: {secretName: {{ . | quote }}, defaultMode: 0440}
{{- end }}
{{- with include "polaris.embedderCA" .root }}
# The authority only: where it stands beside the embedder's key, the key stays out.
- name: embedder-ca
  secret: {secretName: {{ . | quote }}, items: [{key: ca.crt, path: ca.crt}], defaultMode: 0440}
{{- end }}
{{- end -}}
