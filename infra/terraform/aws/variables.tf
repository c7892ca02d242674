variable "region" {
  type        = string
  description = "Where everything is made."
}

variable "name" {
  type        = string
  default     = "drivetrain"
  description = "Of the cluster, as in the cluster file; begins the names of everything."
}

variable "zones" {
  type        = list(string)
  description = "Two availability zones: nodes live in the first, the database wants a second."
  validation {
    condition     = length(var.zones) == 2
    error_message = "Give two zones, for example [\"us-east-1a\", \"us-east-1b\"]."
  }
}

variable "admin_addresses" {
  type        = list(string)
  description = "Addresses that may reach the nodes by ssh, as CIDR blocks."
  validation {
    condition     = alltrue([for block in var.admin_addresses : block != "0.0.0.0/0"])
    error_message = "Name your own addresses; 0.0.0.0/0 is everybody."
  }
}

variable "bucket" {
  type        = string
  description = "Name of the bucket for datasets, checkpoints and MLflow's artifacts; unique in the world."
}

variable "database_class" {
  type        = string
  default     = "db.t4g.small"
  description = "Kind of the database's machine."
}

variable "deletion_protection" {
  type        = bool
  default     = true
  description = "Whether the database and a bucket that holds something refuse to be destroyed. The file system always does."
}
