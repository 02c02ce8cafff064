package sandbox

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// Init must be the first thing that the main of an executable does which calls Run. In the sandbox's first process it does
// not return.
func Init() {
	dir := os.Getenv(stageVariable)
	if dir == "" {
		return
	}
	runtime.LockOSThread() // namespaces belong to the thread that becomes systemd
	err := boot(dir)
	fmt.Fprintf(os.Stderr, "sandbox: %v\n", err)
	os.Exit(125)
}

// step is one thing that has to work; the text is for the error.
type step struct {
	what string
	do   func() error
}

func mount(source, target, kind string, flags uintptr, data string) step {
	return step{fmt.Sprintf("mount %s on %s", source, target), func() error { return unix.Mount(source, target, kind, flags, data) }}
}

func write(path, text string) step {
	return step{"write " + path, func() error { return os.WriteFile(path, []byte(text), 0o644) }}
}

func directories(paths ...string) step {
	return step{"make directories", func() error {
		for _, p := range paths {
			if err := os.MkdirAll(p, 0o755); err != nil {
				return err
			}
		}
		return nil
	}}
}

func boot(dir string) error {
	const quiet = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	root := filepath.Join(dir, "root")
	layer := filepath.Join(dir, "layer")
	in := func(path string) string { return filepath.Join(root, path) }
	steps := []step{
		{"enter a cgroup namespace", func() error { return unix.Unshare(unix.CLONE_NEWCGROUP) }},
		{"keep mounts to ourselves", func() error { return unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "") }},
		directories(root, layer),
		mount("tmpfs", layer, "tmpfs", 0, "mode=755"),
		directories(filepath.Join(layer, "upper"), filepath.Join(layer, "work")),
		mount("overlay", root, "overlay", 0, "lowerdir=/,upperdir="+layer+"/upper,workdir="+layer+"/work"),
		mount("proc", in("proc"), "proc", quiet, ""),
		mount("sysfs", in("sys"), "sysfs", quiet, ""),
		mount("cgroup2", in("sys/fs/cgroup"), "cgroup2", quiet, ""),
		mount("tmpfs", in("dev"), "tmpfs", unix.MS_NOSUID|unix.MS_NOEXEC, "mode=755,size=16m"),
		mount("tmpfs", in("run"), "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=755"),
		mount("tmpfs", in("tmp"), "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=1777"),
		{"make devices", func() error { return devices(in) }},
		directories(in("run/lock"), in("run/sandbox")),
		mount(dir, in("run/sandbox"), "", unix.MS_BIND, ""),
		{"bring the loopback up", loopback},
		{"share directories", func() error { return share(dir, in) }},
		{"arrange units", func() error { return units(in) }},
		write(in("etc/hostname"), "sandbox\n"),
		write(in("etc/fstab"), ""),
		{"forget the machine's id", func() error { return os.WriteFile(in("etc/machine-id"), []byte("uninitialized\n"), 0o644) }},
		{"set the host name", func() error { return unix.Sethostname([]byte("sandbox")) }},
		// The kernel's settings that are not of a namespace stay as they are.
		mount(in("proc/sys"), in("proc/sys"), "", unix.MS_BIND, ""),
		mount(in("proc/sys/net"), in("proc/sys/net"), "", unix.MS_BIND, ""),
		mount("", in("proc/sys"), "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY|quiet, ""),
		mount("", in("sys"), "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY|quiet, ""),
		{"pivot", func() error { return pivot(root) }},
	}
	for _, s := range steps {
		if err := s.do(); err != nil {
			return fmt.Errorf("%s: %w", s.what, err)
		}
	}
	environment := []string{"container=retinue-sandbox", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8"}
	return unix.Exec(systemd, []string{systemd, "--system", "--unit=sandbox-ready.service", "--show-status=no"}, environment)
}

func devices(in func(string) string) error {
	for _, name := range []string{"null", "zero", "full", "random", "urandom", "tty"} {
		if err := os.WriteFile(in("dev/"+name), nil, 0o666); err != nil {
			return err
		}
		if err := unix.Mount("/dev/"+name, in("dev/"+name), "", unix.MS_BIND, ""); err != nil {
			return err
		}
	}
	for _, name := range []string{"pts", "shm"} {
		if err := os.Mkdir(in("dev/"+name), 0o755); err != nil {
			return err
		}
	}
	if err := unix.Mount("devpts", in("dev/pts"), "devpts", unix.MS_NOSUID|unix.MS_NOEXEC, "newinstance,ptmxmode=0666,mode=620,gid=5"); err != nil {
		return err
	}
	if err := unix.Mount("tmpfs", in("dev/shm"), "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=1777"); err != nil {
		return err
	}
	for name, target := range map[string]string{
		"ptmx": "pts/ptmx", "fd": "/proc/self/fd", "stdin": "fd/0", "stdout": "fd/1", "stderr": "fd/2",
	} {
		if err := os.Symlink(target, in("dev/"+name)); err != nil {
			return err
		}
	}
	return nil
}

func loopback() error {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(s)
	r, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	r.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	return unix.IoctlIfreq(s, unix.SIOCSIFFLAGS, r)
}

func share(dir string, in func(string) string) error {
	list, err := os.ReadFile(filepath.Join(dir, "shared"))
	if err != nil {
		return err
	}
	for _, path := range strings.Split(string(list), "\x00") {
		if err := os.MkdirAll(in(path), 0o755); err != nil {
			return err
		}
		if err := unix.Mount(path, in(path), "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
	}
	return nil
}

// masked are units of the distribution that need hardware, a console or a network, or that would touch the machine.
var masked = []string{
	"systemd-sysctl.service", "systemd-modules-load.service", "kmod-static-nodes.service", "modprobe@.service",
	"systemd-udevd.service", "systemd-udev-trigger.service", "systemd-udev-settle.service", "systemd-udevd-kernel.socket",
	"systemd-udevd-control.socket", "systemd-hwdb-update.service", "systemd-remount-fs.service", "systemd-timesyncd.service",
	"systemd-networkd.service", "systemd-networkd.socket", "systemd-resolved.service", "networking.service",
	"systemd-initctl.socket", "systemd-journald-audit.socket", "systemd-binfmt.service", "proc-sys-fs-binfmt_misc.automount",
	"systemd-random-seed.service", "systemd-boot-system-token.service", "systemd-firstboot.service", "systemd-update-utmp.service",
	"systemd-machine-id-commit.service", "systemd-pcrphase.service", "systemd-pcrphase-sysinit.service", "systemd-pstore.service",
	"systemd-tmpfiles-setup-dev.service", "systemd-tmpfiles-clean.timer", "systemd-sysusers.service", "systemd-fsck-root.service",
	"ldconfig.service", "sys-kernel-debug.mount", "sys-kernel-tracing.mount", "sys-kernel-config.mount",
	"sys-fs-fuse-connections.mount", "dev-hugepages.mount", "dev-mqueue.mount", "getty.target", "console-getty.service",
	"getty@.service", "systemd-ask-password-console.path", "systemd-ask-password-wall.path", "systemd-user-sessions.service",
	"systemd-logind.service", "cryptsetup.target", "veritysetup.target", "integritysetup.target",
}

func units(in func(string) string) error {
	dir := in("etc/systemd/system")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=755"); err != nil {
		return err
	}
	for _, name := range masked {
		if err := os.Symlink("/dev/null", filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	for path, text := range map[string]string{
		filepath.Join(dir, "sandbox-ready.service"): "[Unit]\nDescription=tells that the sandbox is up\nRequires=basic.target\n" +
			"Wants=dbus.socket systemd-journald.service\nAfter=basic.target dbus.socket systemd-journald.service\n" +
			"[Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart=/bin/sh -c 'echo up >/run/sandbox/ready'\n",
		in("etc/systemd/journald.conf.d/sandbox.conf"): "[Journal]\nStorage=volatile\nRateLimitIntervalSec=0\nReadKMsg=no\nAudit=no\n" +
			"ForwardToSyslog=no\nForwardToConsole=no\nForwardToWall=no\n",
	} {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// pivot makes root the root of this mount namespace and lets go of the old one.
func pivot(root string) error {
	if err := os.Chdir(root); err != nil {
		return err
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return err
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return err
	}
	return os.Chdir("/")
}
