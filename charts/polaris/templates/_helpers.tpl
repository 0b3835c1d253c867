{{/* Names of objects: "<fullname>-<part>", cut so that the part stays whole. */}}
{{- define "polaris.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Labels that select pods. Called with (dict "root" $ "part" "operator"). */}}
{{- define "polaris.selector" -}}
app.kubernetes.io/name: {{ default .root.Chart.Name .root.Values.nameOverride | trunc 63 | trimSuffix "-" }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .part }}
{{- end -}}

{{- define "polaris.labels" -}}
{{ include "polaris.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- with .root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "polaris.serviceAccountName" -}}
{{- $values := index .root.Values .part -}}
{{- default (printf "%s-%s" (include "polaris.fullname" .root) .part) $values.serviceAccount.name -}}
{{- end -}}

{{- define "polaris.image" -}}
{{- if .image.digest -}}
{{- printf "%s@%s" .image.repository .image.digest -}}
{{- else -}}
{{- printf "%s:%s" .image.repository (default .root.Chart.AppVersion .image.tag) -}}
{{- end -}}
{{- end -}}

{{/* Restricted Pod Security, for the pod and for its one container. */}}
{{- define "polaris.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "polaris.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end -}}

{{- define "polaris.probes" -}}
startupProbe:
  httpGet: {path: /livez, port: http}
  periodSeconds: 2
  failureThreshold: 60
livenessProbe:
  httpGet: {path: /livez, port: http}
  periodSeconds: 10
  failureThreshold: 6
readinessProbe:
  httpGet: {path: /readyz, port: http}
  periodSeconds: 5
{{- end -}}

{{/* Where text becomes vectors, for service and worker. */}}
{{- define "polaris.embedderURL" -}}
{{- if .Values.embedder.enabled -}}
http://{{ include "polaris.fullname" . }}-embedder.{{ .Release.Namespace }}.svc:8081
{{- else -}}
{{- required "embedder.url must say where text becomes vectors when embedder.enabled is false" .Values.embedder.url -}}
{{- end -}}
{{- end -}}

{{/* Variables, volumes and mounts that service and worker share: the login's Secret, the embedder. */}}
{{- define "polaris.databaseEnv" -}}
- {name: POLARIS_DATABASE_SECRET, value: /run/polaris/database}
- {name: POLARIS_EMBEDDER, value: {{ include "polaris.embedderURL" .root | quote }}}
{{- if .root.Values.embedder.keySecret }}
- {name: POLARIS_EMBEDDER_KEY_FILE, value: /run/polaris/embedder/key}
{{- end }}
{{- end -}}

{{- define "polaris.databaseMounts" -}}
- {name: tmp, mountPath: /tmp}
# No subPath: a mounted Secret follows its changes only as a whole folder.
- {name: database, mountPath: /run/polaris/database, readOnly: true}
{{- if .root.Values.embedder.keySecret }}
- {name: embedder-key, mountPath: /run/polaris/embedder, readOnly: true}
{{- end }}
{{- end -}}

{{- define "polaris.databaseVolumes" -}}
- {name: tmp, emptyDir: {}}
# Optional: pods start before the operator has made the login, and say so.
- name: database
  secret: {secretName: {{ .values.databaseSecret | quote }}, optional: true, defaultMode: 0440}
{{- with .root.Values.embedder.keySecret }}
- name: embedder-key
  secret: {secretName: {{ . | quote }}, defaultMode: 0440}
{{- end }}
{{- end -}}

{{/* The head of each Deployment, up to its container. Called with root, part, values, image. */}}
{{- define "polaris.podMeta" -}}
labels:
  {{- include "polaris.labels" . | nindent 2 }}
  {{- with .values.podLabels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with .values.podAnnotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- define "polaris.placement" -}}
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
{{- end -}}
