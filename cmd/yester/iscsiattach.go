package main

import (
	"fmt"
	"io"
	"net"
	"strings"
	"text/tabwriter"
	"text/template"
	"time"

	"yester/restorepoint"
)

// iscsiService is what `yester iscsi` says at its start.
type iscsiService struct {
	Portal     string       `json:"portal"` // where initiators reach it: ADDRESS:PORT
	Listen     string       `json:"listen"`
	Source     string       `json:"source"`
	Machine    string       `json:"machine"`
	ChapUser   string       `json:"chap_user,omitempty"`
	MutualUser string       `json:"mutual_user,omitempty"`
	Overlay    int64        `json:"overlay,omitempty"` // bytes; 0: read-only
	Expires    time.Time    `json:"expires,omitzero"`
	Targets    []targetLine `json:"targets"`
}

// targetLine is one target in it.
type targetLine struct {
	IQN   string      `json:"iqn"`
	Point string      `json:"point"`
	Time  time.Time   `json:"time"`
	LUNs  []servedLUN `json:"luns"`
}

func newService(addr net.Addr, src *restorepoint.Source, t *targetSet, f *iscsiFlags, c *iscsiConfig) *iscsiService {
	s := &iscsiService{
		Portal: portal(addr), Listen: addr.String(), Source: src.Place(), Machine: t.machine,
		ChapUser: f.chapUser, MutualUser: f.mutualUser,
	}
	if c.overlay != nil {
		s.Overlay = c.overlay.Size
	}
	if f.expire > 0 {
		s.Expires = time.Now().Add(f.expire).UTC().Truncate(time.Second)
	}
	for _, p := range t.served() {
		s.Targets = append(s.Targets, targetLine{IQN: p.iqn, Point: p.point.ID, Time: p.point.Time, LUNs: p.luns})
	}
	return s
}

// portal returns where initiators reach a listener: its own address, or one of
// the host's if it listens at all of them.
func portal(addr net.Addr) string {
	t, ok := addr.(*net.TCPAddr)
	if !ok || !t.IP.IsUnspecified() {
		return addr.String()
	}
	found := net.IPv4(127, 0, 0, 1)
	addrs, _ := net.InterfaceAddrs()
	for _, a := range addrs {
		n, ok := a.(*net.IPNet)
		if !ok || !n.IP.IsGlobalUnicast() || t.IP.To4() != nil && n.IP.To4() == nil {
			continue
		}
		if found.IsLoopback() || found.To4() == nil && n.IP.To4() != nil {
			found = n.IP
		}
	}
	return (&net.TCPAddr{IP: found, Port: t.Port}).String()
}

// print says what is served and how to attach it.
func (s *iscsiService) print(out io.Writer) error {
	fmt.Fprintf(out, "yester serves %s (%s) at %s", printable(s.Machine), printable(s.Source), s.Portal)
	if s.Overlay > 0 {
		fmt.Fprintf(out, "; writes are kept until logout, up to %s for each initiator and disk\n\n", formatBytes(s.Overlay))
	} else {
		fmt.Fprint(out, ", read-only\n\n")
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "TARGET\tLUN\tDISK\tSIZE")
	for _, t := range s.Targets {
		for _, l := range t.LUNs {
			fmt.Fprintf(w, "%s\t%d\t%s\t%s\n", t.IQN, l.LUN, printable(l.Disk), formatBytes(l.Size))
		}
	}
	if err := w.Flush(); err != nil {
		return err
	}
	host, port, err := net.SplitHostPort(s.Portal)
	if err != nil {
		return err
	}
	last := s.Targets[len(s.Targets)-1]
	return attachText.Execute(out, map[string]any{
		"Portal": s.Portal, "Host": host, "Port": port, "Target": last.IQN, "LUN": last.LUNs[0].LUN, "Many": len(s.Targets) > 1,
		"CHAP": s.ChapUser != "", "User": s.ChapUser, "Mutual": s.MutualUser != "", "MutualUser": s.MutualUser, "Overlay": s.Overlay > 0,
	})
}

// attachText is how to attach a target. Secrets are placeholders: whoever starts
// the command has them, and its output goes to logs.
var attachText = template.Must(template.New("").Funcs(template.FuncMap{"sh": shellQuote, "ps": powershellQuote}).Parse(`
How to attach it{{if .Many}}, the newest for example{{end}}.
{{- if .CHAP}} SECRET stands for the secret of {{.User}}{{if .Mutual}}, MUTUALSECRET for that of {{.MutualUser}}{{end}}.{{end}}

Linux (open-iscsi, as root)
  T={{.Target}} P={{.Portal}}
  D=/dev/disk/by-path/ip-$P-iscsi-$T-lun-{{.LUN}}
  iscsiadm -m node -T $T -p $P -o new
{{- define "set"}}
  iscsiadm -m node -T $T -p $P -o update -n node.session.auth{{end}}
{{- if .CHAP}}
{{- template "set"}}.authmethod -v CHAP
{{- template "set"}}.username -v {{sh .User}}
{{- template "set"}}.password -v 'SECRET'
{{- end}}
{{- if .Mutual}}
{{- template "set"}}.username_in -v {{sh .MutualUser}}
{{- template "set"}}.password_in -v 'MUTUALSECRET'
{{- end}}
  iscsiadm -m node -T $T -p $P --login
  lsblk -o NAME,SIZE,FSTYPE,LABEL $D
{{- if .Overlay}}
  mount $D-part1 /mnt                 # XFS beside its original: -o nouuid
{{- else}}
  mount -o ro,noload $D-part1 /mnt    # XFS: ro,norecovery,nouuid
{{- end}}
  umount /mnt
  iscsiadm -m node -T $T -p $P --logout
  iscsiadm -m node -T $T -p $P -o delete

Windows (PowerShell, as administrator)
  $t = '{{.Target}}'
  $p = @{TargetPortalAddress = '{{.Host}}'; TargetPortalPortNumber = {{.Port}}}
{{- if .CHAP}}
  $c = @{AuthenticationType = '{{if .Mutual}}MUTUALCHAP{{else}}ONEWAYCHAP{{end}}'; ChapUsername = {{ps .User}}; ChapSecret = 'SECRET'}
{{- end}}
  Start-Service MSiSCSI
{{- if .Mutual}}
  Set-IscsiChapSecret -ChapSecret 'MUTUALSECRET'
{{- end}}
  New-IscsiTargetPortal @p{{if .CHAP}} @c{{end}}
  Connect-IscsiTarget -NodeAddress $t @p{{if .CHAP}} @c{{end}}
  Get-IscsiSession | Where-Object TargetNodeAddress -eq $t | Get-Disk | Set-Disk -IsOffline $false
  Disconnect-IscsiTarget -NodeAddress $t -Confirm:$false
  Remove-IscsiTargetPortal @p -Confirm:$false

QEMU and libguestfs{{if .Mutual}} (whose initiator doesn't ask targets to prove themselves){{end}}
{{- if .CHAP}}
  export LIBISCSI_CHAP_USERNAME={{sh .User}} LIBISCSI_CHAP_PASSWORD='SECRET'
{{- end}}
  U=iscsi://{{.Portal}}/{{.Target}}/{{.LUN}}
  qemu-img convert -p -O qcow2 $U disk.qcow2
  qemu-system-x86_64 -m 2G -snapshot -drive file=$U,format=raw
  LIBGUESTFS_BACKEND=direct guestfish --ro -i -a $U
`))

// plainWord reports whether shells take s as it is.
func plainWord(s string) bool {
	return s != "" && strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-/:@") == ""
}

// shellQuote returns s as one word of a POSIX shell.
func shellQuote(s string) string {
	if plainWord(s) {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

// powershellQuote returns s as a string of PowerShell.
func powershellQuote(s string) string { return "'" + strings.ReplaceAll(s, "'", "''") + "'" }
