output "subnet_id" {
  value = aws_subnet.this[0].id
}

output "security_group_id" {
  value = aws_security_group.nodes.id
}

output "head_profile_arn" {
  value = aws_iam_instance_profile.head.arn
}

output "node_profile_arn" {
  value = aws_iam_instance_profile.node.arn
}

output "file_system_address" {
  value = aws_efs_file_system.this.dns_name
}

output "bucket" {
  value = "s3://${aws_s3_bucket.this.id}"
}

output "database_address" {
  value = aws_db_instance.this.endpoint
}

output "database_secret" {
  value       = one(aws_db_instance.this.master_user_secret[*].secret_arn)
  description = "Secret with the password of the database."
}
