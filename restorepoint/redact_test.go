package restorepoint

import "testing"

// TestRedact keeps passwords out of what is shown of a location.
func TestRedact(t *testing.T) {
	for location, want := range map[string]string{
		"/backups/a@b:c":                 "/backups/a@b:c",
		"sftp://host/dir@x":              "sftp://host/dir@x",
		"sftp://user@host:22/x":          "sftp://user@host:22/x",
		"sftp://user:hunter2@host/x":     "sftp://user:xxxxx@host/x",
		"sftp://user:hun%ter2@host/x":    "sftp://user:xxxxx@host/x",
		"sftp://user:hun/ter2@host/x y%": "sftp://user:xxxxx@host/x y%",
		"ebs://?tag:Name=a@b":            "ebs://?tag:Name=a@b",
	} {
		if got := Redact(location); got != want {
			t.Errorf("%s is shown as %s, want %s", location, got, want)
		}
	}
}
