"""What keeping freed memory is for, counted in page faults, which are the same on a busy machine."""

import subprocess
import sys

DECODING = """
import resource, sys, torch
from node.demo import architecture
from node.demo.memory import keep_freed_memory
torch.set_num_threads(1)
kept = sys.argv[1] == "kept" and keep_freed_memory()
vae, latents = architecture.autoencoder(), torch.zeros(2, 4, 32, 32)
def faults_after(times):
    with torch.no_grad():
        for _ in range(times):
            vae.decode(latents)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
before = faults_after(4)
print(int(kept), faults_after(4) - before)
"""


def faults(how: str) -> tuple[int, int]:
    """Whether memory was kept, and the page faults of decoding four times after having done so four times."""
    done = subprocess.run([sys.executable, "-c", DECODING, how], check=True, capture_output=True, text=True, timeout=60)
    kept, count = map(int, done.stdout.split())
    return kept, count


def test_decoding_again_needs_no_new_memory():
    kept, faults_when_kept = faults("kept")

    assert kept
    assert faults_when_kept * 5 < faults("as usual")[1]
