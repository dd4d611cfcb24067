output "job" {
  description = "Id of the job."
  value       = google_dataflow_flex_template_job.rollout.job_id
}
