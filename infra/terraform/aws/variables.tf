variable "region" {
  type        = string
  description = "Region of all resources."
}

variable "name" {
  type        = string
  default     = "drivetrain"
  description = "Name of the cluster, as in the cluster file; prefix of all resource names."
}

variable "zones" {
  type        = list(string)
  description = "Two availability zones: the first for nodes, the second required by the database."
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
    error_message = "Use specific addresses; 0.0.0.0/0 is the whole Internet."
  }
}

variable "bucket" {
  type        = string
  description = "Name of the bucket for datasets, checkpoints and MLflow's artifacts; globally unique."
}

variable "database_class" {
  type        = string
  default     = "db.t4g.small"
  description = "Instance class of the database."
}

variable "deletion_protection" {
  type        = bool
  default     = true
  description = "Whether the database and a non-empty bucket are protected from deletion. The file system always is."
}
