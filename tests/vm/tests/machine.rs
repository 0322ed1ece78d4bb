//! The machines do what they promise. Each test boots at least one.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

use std::{
    fs, thread,
    time::{Duration, Instant},
};

use larder_vm::{End, Machine};

#[test]
fn output_and_status_are_passed_through_apart_and_unchanged() {
    let script =
        "echo out; echo err >&2; echo more > /dev/stderr; head -c 300000 /dev/zero; exit 7";
    let output = Machine::new().run(["sh", "-c", script]).unwrap();
    assert_eq!(output.end, End::Exited(7));
    assert_eq!(output.stderr, b"err\nmore\n");
    assert_eq!(&output.stdout[..4], b"out\n");
    assert_eq!(output.stdout[4..], vec![0; 300_000]);
}

#[test]
fn arguments_variables_and_standard_input_arrive_unchanged() {
    let output = Machine::new()
        .env("ODD", "a 'b'\n$c")
        .stdin("line 1\nline 2\n")
        .run(["sh", "-c", "printf '%s|' \"$@\" \"$ODD\"; cat", "sh", "it's", "", "$(x)", "a\nb"])
        .unwrap()
        .checked()
        .unwrap();
    assert_eq!(output.text(), "it's||$(x)|a\nb|a 'b'\n$c|line 1\nline 2\n");
}

#[test]
fn a_command_that_is_not_there_and_one_that_is_killed_report_as_in_a_shell() {
    let output = Machine::new().run(["no-such-command"]).unwrap();
    assert_eq!(output.end, End::Exited(127));
    let output = Machine::new().run(["sh", "-c", "kill -9 $$"]).unwrap();
    assert_eq!(output.end, End::Exited(137));
}

#[test]
fn a_background_process_does_not_hold_the_machine_up() {
    let began = Instant::now();
    let output = Machine::new().run(["sh", "-c", "sleep 1000 & echo started"]).unwrap();
    assert_eq!(output.end, End::Exited(0));
    assert_eq!(output.text(), "started\n");
    assert!(began.elapsed() < Duration::from_secs(60));
}

#[test]
fn a_shared_folder_stands_at_its_own_path_and_a_host_binary_runs_there() {
    let dir = tempfile::tempdir().unwrap();
    let own = std::env::current_exe().unwrap();
    fs::write(dir.path().join("in"), "from the host").unwrap();
    let script = format!(
        "cat '{0}/in'; echo from the guest > /share/out; test \"$PWD\" = '{0}'; '{1}' --list",
        dir.path().display(),
        own.display()
    );
    let output = Machine::new()
        .share(dir.path())
        .share(own.parent().unwrap())
        .run(["sh", "-ec", &script])
        .unwrap()
        .checked()
        .unwrap();
    assert!(output.text().starts_with("from the host"), "{}", output.text());
    assert!(output.text().contains("a_shared_folder_stands_at_its_own_path"), "{}", output.text());
    assert_eq!(fs::read_to_string(dir.path().join("out")).unwrap(), "from the guest\n");
}

#[test]
fn the_scratch_disk_is_a_real_file_system_and_gone_with_the_machine() {
    let machine = Machine::new().scratch(4 << 30);
    let script =
        "findmnt -no FSTYPE /scratch; test ! -e /scratch/x; echo 1 > /scratch/x; sync /scratch/x";
    for _ in 0..2 {
        let output = machine.run(["sh", "-ec", script]).unwrap().checked().unwrap();
        assert_eq!(output.text(), "ext4\n");
    }
}

#[test]
fn the_guest_has_the_modules_and_tools_that_a_small_host_lacks() {
    let script =
        "modprobe -a loop xfs btrfs quota_v2 dm_thin_pool dm_snapshot dm_crypt dm_log_writes \
                  nfsd nvmet nvme_tcp iscsi_tcp target_core_mod
         for tool in mkfs.xfs mkfs.btrfs mkfs.ext4 setquota fio strace setfattr setfacl exportfs \
                     iscsiadm nvme lvs thin_check cryptsetup losetup ps; do
             command -v $tool > /dev/null || { echo $tool is missing; exit 1; }
         done
         truncate -s 64M /scratch/image
         mkfs.ext4 -q -O quota,project -E quotatype=prjquota /scratch/image
         mount -o loop,prjquota /scratch/image /mnt
         mkdir /mnt/d && chattr +P -p 7 /mnt/d
         setquota -P 7 0 1024 0 0 /mnt
         repquota -P /mnt | grep -q '^#7 '";
    let machine = Machine::new().scratch(1 << 30);
    machine.run(["bash", "-ec", script]).unwrap().checked().unwrap();
}

#[test]
fn udev_names_disks_when_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let disk = larder_vm::Disk::new("data-1", dir.path().join("disk"), 1 << 20).unwrap();
    let script = "readlink -f /dev/larder/data-1 /dev/disk/by-id/virtio-data-1";
    let output = Machine::new().disk(&disk).udev(true).run(["sh", "-c", script]).unwrap();
    let text = output.checked().unwrap().text();
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines.len(), 2, "{text}");
    assert_eq!(lines[0], lines[1]);
    assert!(lines[0].starts_with("/dev/vd"), "{text}");
}

#[test]
fn several_machines_run_at_once() {
    thread::scope(|scope| {
        let started: Vec<_> = (0..3)
            .map(|number| {
                scope.spawn(move || Machine::new().run(["echo", &number.to_string()]).unwrap())
            })
            .collect();
        for (number, handle) in started.into_iter().enumerate() {
            assert_eq!(handle.join().unwrap().checked().unwrap().text(), format!("{number}\n"));
        }
    });
}

#[test]
fn a_command_past_its_time_is_ended() {
    let machine = Machine::new().timeout(Duration::from_secs(15));
    let output = machine.run(["sh", "-c", "echo begun; sleep 1000"]).unwrap();
    assert_eq!(output.end, End::TimedOut);
}

#[test]
fn a_dead_guest_is_reported_with_its_last_words() {
    let output = Machine::new().run(["sh", "-c", "echo c > /proc/sysrq-trigger"]).unwrap();
    assert_eq!(output.end, End::Crashed);
    assert!(output.console.contains("sysrq_handle_crash"), "{}", output.console);
}

#[test]
fn a_dropped_machine_leaves_no_process() {
    // Its QEMU can be told apart by the path of a shared folder.
    let dir = tempfile::tempdir().unwrap();
    let mark = dir.path().display().to_string();
    let running = Machine::new().share(dir.path()).spawn(["sh", "-c", "echo up; cat"]).unwrap();
    running.wait_for("up", Duration::from_secs(60)).unwrap();
    assert_eq!(qemu_processes(&mark), 1);
    drop(running);
    assert_eq!(qemu_processes(&mark), 0);
}

fn qemu_processes(mark: &str) -> usize {
    let cmdline = |entry: fs::DirEntry| fs::read(entry.path().join("cmdline")).ok();
    let ours = |bytes: &Vec<u8>| {
        bytes.starts_with(b"qemu-system") && String::from_utf8_lossy(bytes).contains(mark)
    };
    fs::read_dir("/proc").unwrap().flatten().filter_map(cmdline).filter(ours).count()
}
