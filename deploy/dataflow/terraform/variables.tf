variable "project" {
  type        = string
  description = "Project that pays."
}

variable "region" {
  type        = string
  description = "Where workers of Dataflow run: near Kafka and the engines."
}

variable "run" {
  type        = string
  description = "Name of the run."

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{0,18}$", var.run))
    error_message = "Expected lower-case letters, digits and '-', at most 19, beginning with a letter: it is part of an account's name."
  }
}

variable "bucket" {
  type        = string
  description = "Bucket of the template, the run's configuration and temporary files, without gs://."
}

variable "image" {
  type        = string
  description = "The image pipeline of deploy/docker/Dockerfile, with its registry and tag."
}

variable "bootstrap" {
  type        = string
  description = "Brokers, host:port separated by commas."
}

variable "model" {
  type        = string
  description = "Directory of the model within the image: the tokenizer is read there."
}

variable "network" {
  type        = string
  description = "Network that reaches Kafka and the engines."
}

variable "subnetwork" {
  type        = string
  description = "Its subnetwork, as regions/REGION/subnetworks/NAME."
}

variable "machine_type" {
  type        = string
  description = "Of each worker of Dataflow."
  default     = "n2-standard-4"
}

variable "workers" {
  type        = number
  description = "Workers of Dataflow, each with one share of the prompts; at most kafka.partitions."
  default     = 1
}
