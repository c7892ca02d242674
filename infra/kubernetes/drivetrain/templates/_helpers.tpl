{{- define "drivetrain.labels" -}}
app.kubernetes.io/name: drivetrain
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{- define "drivetrain.selector" -}}
app.kubernetes.io/name: drivetrain
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "drivetrain.podSecurity" -}}
runAsNonRoot: true
runAsUser: 1000
fsGroup: 1000
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "drivetrain.containerSecurity" -}}
allowPrivilegeEscalation: false
capabilities: {drop: [ALL]}
{{- end }}

{{- define "drivetrain.mlflowUri" -}}
{{- if .Values.mlflow.enabled }}http://{{ .Release.Name }}-mlflow:5000{{ else }}{{ .Values.mlflow.uri }}{{ end }}
{{- end }}

{{/* Environment of all pods that run Drivetrain. */}}
{{- define "drivetrain.environment" -}}
- {name: DRIVETRAIN_HOME, value: /mnt/drivetrain}
- {name: RAY_USAGE_STATS_ENABLED, value: "0"}
- {name: RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S, value: "100"} # time for ranks to save when a node is removed
{{- with include "drivetrain.mlflowUri" . }}
- {name: MLFLOW_TRACKING_URI, value: {{ . | quote }}}
{{- end }}
{{- if .Values.mlflow.enabled }}
- {name: MLFLOW_TRACKING_USERNAME, valueFrom: {secretKeyRef: {name: {{ .Values.mlflow.adminSecret }}, key: username}}}
- {name: MLFLOW_TRACKING_PASSWORD, valueFrom: {secretKeyRef: {name: {{ .Values.mlflow.adminSecret }}, key: password}}}
{{- end }}
{{- with .Values.database.secret }}
- {name: DRIVETRAIN_DATABASE_URL, valueFrom: {secretKeyRef: {name: {{ . }}, key: url}}}
{{- end }}
{{- end }}

{{- define "drivetrain.environmentFrom" -}}
{{- with .Values.environmentSecret }}
envFrom: [{secretRef: {name: {{ . }}}}]
{{- end }}
{{- end }}
