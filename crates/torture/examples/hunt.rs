use torture::*;
use vmmu::protocol::{Defect, switch};
fn main() {
    let a: Vec<String> = std::env::args().collect();
    let only = a.get(1).cloned();
    for d in Defect::ALL {
        if only.as_ref().is_some_and(|o| d.name() != o.as_str()) {
            continue;
        }
        switch(Some(*d));
        let mut found = Vec::new();
        for seed in 1..3 {
            for (tables, det, steps) in [
                (Tables::Npt, false, 300_000),
                (Tables::Ept, false, 300_000),
                (Tables::Npt, true, 150_000),
                (Tables::Ept, true, 150_000),
            ] {
                let s = Settings { seed, steps, vcpus: 4, tables, deterministic: det };
                let r = run(s, &mut |_| {});
                found.push(match r {
                    Ok(_) => "-".to_string(),
                    Err(f) => format!(
                        "{}: {}",
                        f.steps,
                        f.violation.what.chars().take(20).collect::<String>()
                    ),
                });
            }
        }
        println!("{:30} {:?}", d.name(), found);
    }
}
