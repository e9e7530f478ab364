use torture::*;
fn main() {
    let a: Vec<String> = std::env::args().collect();
    let steps: u64 = a[1].parse().unwrap();
    let seed: u64 = a[2].parse().unwrap();
    let det = a[3] == "d";
    let tables = if a[4] == "ept" { Tables::Ept } else { Tables::Npt };
    let s = Settings { seed, steps, vcpus: 4, tables, deterministic: det };
    match run(s, &mut |_| {}) {
        Ok(r) => {
            println!("{:#?}", r.operations);
            println!("{:#?}", r.outcomes);
            println!("{:?}\n{:?}", r.stats, r.processors);
            println!(
                "digest {:x} steps {} took {:?} missing {:?}",
                r.digest,
                r.steps,
                r.took,
                r.missing()
            );
        }
        Err(f) => {
            println!("FAIL after {}: {}", f.steps, f.violation);
            let sh = shrink::shrink(*f, 500, &mut |_| {});
            println!(
                "repeats {} runs {} len {} : {}",
                sh.repeats,
                sh.runs,
                sh.failure.plan.len(),
                sh.failure.violation
            );
            if sh.repeats {
                println!("{:?}", sh.failure.plan.threads);
            }
        }
    }
}
