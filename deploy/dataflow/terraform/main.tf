# A run's rollout pipeline as a job of the Flex Template. docs/dataflow.md and docs/containers.md say how the template is made.
terraform {
  required_version = ">= 1.5"
  required_providers {
    google-beta = {
      source  = "hashicorp/google-beta"
      version = ">= 6.0"
    }
  }
}

provider "google-beta" {
  project = var.project
  region  = var.region
}

resource "google_service_account" "pipeline" {
  provider     = google-beta
  account_id   = "asyncflow-${var.run}"
  display_name = "Pipelines of the AsyncFlow run ${var.run}"
}

resource "google_project_iam_member" "pipeline" {
  for_each = toset(["roles/dataflow.worker", "roles/artifactregistry.reader"])
  provider = google-beta
  project  = var.project
  role     = each.value
  member   = google_service_account.pipeline.member
}

resource "google_storage_bucket_iam_member" "pipeline" {
  provider = google-beta
  bucket   = var.bucket
  role     = "roles/storage.objectAdmin"
  member   = google_service_account.pipeline.member
}

resource "google_dataflow_flex_template_job" "rollout" {
  provider                = google-beta
  name                    = "asyncflow-${var.run}-rollout"
  container_spec_gcs_path = "gs://${var.bucket}/templates/asyncflow.json"
  on_delete               = "drain"

  service_account_email   = google_service_account.pipeline.email
  network                 = var.network
  subnetwork              = var.subnetwork
  ip_configuration        = "WORKER_IP_PRIVATE"
  machine_type            = var.machine_type
  num_workers             = var.workers
  max_workers             = var.workers
  temp_location           = "gs://${var.bucket}/temp"
  staging_location        = "gs://${var.bucket}/staging"
  sdk_container_image     = var.image
  enable_streaming_engine = true
  # One client of engines in a machine: docs/scaling.md.
  additional_experiments = ["no_use_multiple_sdk_containers"]

  parameters = {
    pipeline         = "rollout"
    config_file      = "gs://${var.bucket}/${var.run}/run.toml"
    name             = var.run
    kafka__bootstrap = var.bootstrap
    model__path      = var.model
    rollout__shares  = var.workers
  }

  depends_on = [google_project_iam_member.pipeline, google_storage_bucket_iam_member.pipeline]
}
