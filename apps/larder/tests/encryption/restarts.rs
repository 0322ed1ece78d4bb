//! Restarts of the server and of the machine, with and without its records.

use crate::{
    lab::{KEY, Lab, SIZE, key},
    owners::run,
};
use std::fs;
use tonic::Code;

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_and_wiped_records_leave_it_in_use_and_able_to_end() {
    for block in [false, true] {
        let mut lab = Lab::new(block).await;
        lab.create("a").await;
        let target = lab.open("a", KEY).await;
        if !block {
            fs::write(target.join("file"), "kept").unwrap();
        }
        lab.restart().await;
        assert_eq!(lab.opened().len(), 1);
        lab.publish("a").await.unwrap();
        lab.server.kill();
        fs::remove_dir_all(lab.site.path("state")).unwrap();
        lab.restart().await;
        if !block {
            assert_eq!(fs::read(target.join("file")).unwrap(), b"kept");
            lab.expand("a", 2 * SIZE).await.unwrap();
            lab.node_expand("a", key(KEY)).await.unwrap();
        }
        lab.unpublish("a").await.unwrap();
        lab.unstage("a").await.unwrap();
        assert!(lab.opened().is_empty());
        lab.delete("a").await;
        assert!(lab.is_clean());
    }
}

/// A reboot takes mounts and devices, and the records with them: they are in `/run`. Where they are kept
/// elsewhere they tell of what does not stand.
#[tokio::test(flavor = "multi_thread")]
async fn after_a_reboot_the_volume_is_opened_anew() {
    for block in [false, true] {
        let mut lab = Lab::new(block).await;
        lab.create("a").await;
        let target = lab.open("a", KEY).await;
        if !block {
            fs::write(target.join("data"), "precious").unwrap();
        }
        lab.server.kill();
        run(&format!(
            "umount {target}; {staged} cryptsetup close {name}; for d in $(losetup -nO NAME -j {image}); do \
             losetup -d $d; done",
            target = target.display(),
            staged = if block {
                String::new()
            } else {
                format!("umount {};", lab.staging("a").display())
            },
            name = lab.name("a"),
            image = lab.image("a").display()
        ));
        lab.restart().await;
        let refused = lab.stage("a", key("wrong")).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unauthenticated, "{refused}");
        let target = lab.open("a", KEY).await;
        if !block {
            assert_eq!(fs::read(target.join("data")).unwrap(), b"precious");
        }
        lab.close("a").await;
        lab.delete("a").await;
        assert!(lab.is_clean());
    }
}
