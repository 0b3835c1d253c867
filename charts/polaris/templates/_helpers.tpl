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

{{/*
Names of objects that belong to no namespace: they have to tell two releases apart, so a character stands between that
namespaces and releases can't have. Names of roles may have it, and are not cut.
*/}}
{{- define "polaris.clusterName" -}}
{{- printf "%s:%s-%s" .root.Release.Namespace (include "polaris.fullname" .root) .part | quote -}}
{{- end -}}

{{/*
What is called with a part takes a dict: root, part (operator, service, worker, embedder, migrate), and for pods values
(the part's), image and resources.

Labels that select pods never change: a Deployment's selector can't.
*/}}
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

{{/* Name, namespace and labels of an object of a part. */}}
{{- define "polaris.metadata" -}}
name: {{ include "polaris.fullname" .root }}-{{ .part }}
namespace: {{ .root.Release.Namespace }}
labels:
  {{- include "polaris.labels" . | nindent 2 }}
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

{{/* The port that each part listens on: its API, or its probes and metrics where it has none. */}}
{{- define "polaris.port" -}}
{{- get (dict "operator" "9090" "service" "8080" "worker" "9091" "embedder" "8081") . -}}
{{- end -}}

{{/* Namespaces that the operator watches, as a list in JSON; empty: all. */}}
{{- define "polaris.namespaces" -}}
{{- $namespaces := .Values.operator.watchNamespaces -}}
{{- if and (eq .Values.rbac.scope "namespaced") (not $namespaces) -}}
{{- $namespaces = list .Release.Namespace -}}
{{- end -}}
{{- $namespaces | toJson -}}
{{- end -}}

{{/* https where the part shows a certificate; the scheme is the name of its port too. */}}
{{- define "polaris.scheme" -}}
{{- $values := index .root.Values .part | default dict -}}
{{- $tls := dig "tls" "secretName" "" $values -}}
{{- ternary "https" "http" (ne $tls "") -}}
{{- end -}}

{{/* Where a part is reached inside the cluster. */}}
{{- define "polaris.host" -}}
{{- printf "%s-%s.%s.svc" (include "polaris.fullname" .root) .part .root.Release.Namespace -}}
{{- end -}}

{{/* Port of the query service's Service. */}}
{{- define "polaris.servicePort" -}}
{{- $scheme := include "polaris.scheme" (dict "root" . "part" "service") -}}
{{- .Values.service.port | default (ternary 443 80 (eq $scheme "https")) -}}
{{- end -}}

{{- define "polaris.serviceURL" -}}
{{- $context := dict "root" . "part" "service" -}}
{{- printf "%s://%s:%s" (include "polaris.scheme" $context) (include "polaris.host" $context) (include "polaris.servicePort" .) -}}
{{- end -}}

{{/* Where text becomes vectors, for service and worker. */}}
{{- define "polaris.embedderURL" -}}
{{- $context := dict "root" . "part" "embedder" -}}
{{- if .Values.embedder.enabled -}}
{{- printf "%s://%s:%s" (include "polaris.scheme" $context) (include "polaris.host" $context) (include "polaris.port" "embedder") -}}
{{- else -}}
{{- required "embedder.url must say where text becomes vectors when embedder.enabled is false" .Values.embedder.url -}}
{{- end -}}
{{- end -}}

{{/* The Secret whose ca.crt vouches for the embedder; empty: the public authorities do. */}}
{{- define "polaris.embedderCA" -}}
{{- $own := ternary .Values.embedder.tls.secretName "" .Values.embedder.enabled -}}
{{- .Values.embedder.caSecret | default $own -}}
{{- end -}}
