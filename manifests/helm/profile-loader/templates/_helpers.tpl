{{/* The name of all objects. */}}
{{- define "profile-loader.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" -}}
{{- else if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* The name of the agent's service account. */}}
{{- define "profile-loader.account" -}}
{{- .Values.serviceAccount.name | default (include "profile-loader.fullname" .) -}}
{{- end -}}

{{/* The recommended labels. The DaemonSet's selector contains only the first one, because a selector
     cannot be changed. */}}
{{- define "profile-loader.labels" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: profile-loader
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{/* The annotations by which helm recognises an object of this release. With them, `helm install` adopts a
     policy that was applied before. */}}
{{- define "profile-loader.owner" -}}
meta.helm.sh/release-name: {{ .Release.Name }}
meta.helm.sh/release-namespace: {{ .Release.Namespace }}
{{- end -}}

{{/* The image, pinned by its digest if there is one. */}}
{{- define "profile-loader.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}
{{- end -}}

{{/* The subjects of every binding: the agent's service account. */}}
{{- define "profile-loader.subjects" -}}
- kind: ServiceAccount
  name: {{ include "profile-loader.account" . }}
  namespace: {{ .Release.Namespace }}
{{- end -}}

{{/* The name of the ConfigMap with the agent's own seccomp profile. A changed profile changes the name, so
     that the pods are restarted. */}}
{{- define "profile-loader.ownSeccomp" -}}
{{ include "profile-loader.fullname" . }}-own-seccomp-{{ .Files.Get "files/agent.json" | sha256sum | trunc 10 }}
{{- end -}}

{{/* Fails if values contradict each other. */}}
{{- define "profile-loader.require" -}}
{{- if and .Values.privileged .Values.ownSeccomp -}}
{{- fail "privileged and ownSeccomp exclude each other, because runtimes ignore the seccomp profile of a privileged container." -}}
{{- end -}}
{{- end -}}
